"""The amounts of work of the study of faces."""

from _faces_parts import Size
from _image_methods import Effort, EFFORTS
from _image_study import Comparison
from _quality_methods import Effort as QualityEffort
from _quality_study import Amount

_QUICK = Effort(
    euler=(2, 4, 8, 16, 32, 64),
    higher=(2, 3, 4, 6, 8, 12, 16),
    stages=(4, 8, 16, 32),
    until=(0.4, 1.0, 2.5),
    intervals=(2, 4),
    held_steps=(8, 16, 32),
    budgets=(1.6, 2.6, 4.0, 6.0, 8.0, 12.0, 16.0),
    scales=(1.0, 4.0),
    splits=(4,),
    learned=(4.0, 8.0),
)
_QUALITY = QualityEffort(
    dpm=(2, 3, 4, 6, 8),
    unipc=(6,),
    path=(2, 3, 4, 5, 6),
    law=(4, 5, 6),
    small={1: (12,), 2: (8,), 3: (4, 6)},
    switched=(),
    budgets=((1.6, 2.6, 4.0), (1.6, 2.6), (2.6, 4.0)),
    several=3,
)
SIZES = {
    "smoke": Size(
        training=64,
        held_out=64,
        matched_steps=None,
        independent_steps=None,
        pilots=4,
        steps=16,
        fit_pilots=8,
        most=2.0,
        levels=(2, 8, 1),
        budgets=(4.0,),
        fitted=(2, 1, 1),
        quality=Amount(64, 64, 4, 8),
        quality_effort=QualityEffort((2,), (), (2,), (), {}, (), ((3.0,), (), (3.0,)), 1),
        features=(64, 20),
        # Fitted steps are on 128 times.
        fine={False: 128, True: 32},
        effort=EFFORTS["smoke"],
        comparison=Comparison(2, 1, 1, 1, 1, (4, 8)),
    ),
    "quick": Size(
        training=40_000,
        held_out=2_000,
        # The network's outputs have no noise, so they are learned in fewer steps than the data.
        matched_steps=6_000,
        independent_steps=4_000,
        pilots=32,
        steps=64,
        fit_pilots=24,
        most=7.0,
        levels=(32, 64, 3),
        budgets=(1.6, 2.6, 4.0, 8.0, 16.0),
        fitted=(32, 3, 2),
        quality=Amount(512, 128, 16, 24),
        quality_effort=_QUALITY,
        features=(12_000, 2_000),
        fine={False: 128, True: 256},
        effort=_QUICK,
        comparison=Comparison(16, 3, 1, 3, 2, (16, 32, 64)),
    ),
    "full": Size(
        training=40_000,
        held_out=5_000,
        matched_steps=None,
        independent_steps=None,
        pilots=64,
        steps=128,
        fit_pilots=128,
        most=16.0,
        levels=(64, 128, 5),
        budgets=(1.6, 2.6, 4.0, 8.0, 16.0, 32.0),
        fitted=(64, 3, 5),
        quality=Amount(5_000, 512, 20, 128),
        quality_effort=_QUALITY._replace(
            law=(2, 3, 4, 5, 6, 8),
            small={0: (16,), 1: (12, 16), 2: (8, 12), 3: (3, 4, 6, 8)},
            switched=(2, 3, 4),
        ),
        features=(40_000, 3_000),
        fine={False: 512, True: 1024},
        effort=EFFORTS["full"]._replace(
            higher=(2, 3, *EFFORTS["full"].higher), budgets=(1.6, 2.6, *EFFORTS["full"].budgets)
        ),
        comparison=Comparison(32, 3, 2, 4, 5, (16, 32, 64)),
    ),
}
# For a ladder whose finest network is several times larger, on a CPU.
LARGE = SIZES["quick"]._replace(
    pilots=16,
    steps=32,
    most=6.0,
    fitted=(32, 3, 1),
    quality_effort=_QUALITY._replace(unipc=(), law=(4, 6), small={2: (8,), 3: (6,), 4: (4,)}),
)
