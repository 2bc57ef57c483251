"""A ladder's TOML file: what it may leave out, and that everything wrong in it is named."""

from pathlib import Path

import equinox as eqx
import pytest
from problems import as_user

import mlem_jax.diffusion
from mlem_jax.diffusion import Config, DiTLevel, Level, read_config, Training, VariancePreserving

SHIPPED = Path(mlem_jax.diffusion.__file__).parent / "fashion_mnist" / "ladder.toml"
LEVEL = "[[levels]]\nwidth = 4\nfolds = [4]\nmultipliers = [1]\nblocks = [1]\n"
HEAD = 'name = "tiny"\nshape = [4, 4, 1]\n'
SMALLEST = HEAD + LEVEL


def read(tmp_path, text):
    path = tmp_path / "ladder.toml"
    path.write_text(text)
    # As a user: run-time type checks would refuse an integer for a float, and before the file's own messages.
    with as_user():
        return read_config(path)


def test_everything_that_can_be_written_is_read(tmp_path):
    # Integers do for `clip_norm` and `ema_decay`.
    config = read(
        tmp_path,
        """
        name = "all"
        shape = [8, 12, 3]
        prediction = "x0"
        classes = 7
        [process]
        s_min = 0.02
        s_max = 50.0
        [training]
        steps = 1
        match_steps = 2
        batch_size = 3
        learning_rate = 0.1
        match_learning_rate = 0.2
        match_log_normal = [0.5, 1.6]
        warmup_steps = 4
        clip_norm = 2
        ema_decay = 0
        seed = 5
        label_dropout = 0
        precision = "bfloat16"
        [[levels]]
        width = 4
        folds = [4]
        multipliers = [3]
        blocks = [0]
        [[levels]]
        width = 6
        folds = [2, 2]
        multipliers = [1, 2]
        blocks = [1, 1]
        attention = [false, true]
        [[levels]]
        kind = "dit"
        width = 6
        patch = 2
        depth = 1
        heads = 3
        [[levels]]
        kind = "unet"
        width = 7
        """,
    )
    assert config == Config(
        name="all",
        shape=(8, 12, 3),
        prediction="x0",
        classes=7,
        process=VariancePreserving(s_min=0.02, s_max=50.0),
        training=Training(
            steps=1,
            match_steps=2,
            batch_size=3,
            learning_rate=0.1,
            match_learning_rate=0.2,
            match_log_normal=(0.5, 1.6),
            warmup_steps=4,
            clip_norm=2.0,
            ema_decay=0.0,
            seed=5,
            label_dropout=0.0,
            precision="bfloat16",
        ),
        levels=(
            Level(4, (4,), (3,), (0,)),
            Level(6, (2, 2), (1, 2), (1, 1), (False, True)),
            DiTLevel(6, 2, 1, 3),
            Level(7),
        ),
    )


def test_what_is_left_out_takes_its_default(tmp_path):
    config = read(tmp_path, HEAD + "[[levels]]\nwidth = 4\n")
    assert config == Config(name="tiny", shape=(4, 4, 1), levels=(Level(width=4),))
    assert config.classes is None and config.levels[0].attention is None
    assert (config.training.label_dropout, config.training.precision) == (0.1, "float32")
    assert config.prediction == "v" and config.process == VariancePreserving()
    assert config.training == Training() and config.training.match_log_normal is None


def test_a_part_of_a_table_keeps_the_other_defaults(tmp_path):
    config = read(tmp_path, HEAD + "[process]\ns_max = 20.0\n[training]\nsteps = 7\n" + LEVEL)
    assert config.process == VariancePreserving(s_max=20.0)
    assert config.training == Training(steps=7)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            SMALLEST.replace("name", "nam", 1),
            r"ladder\.toml has \['nam'\], which is not known; known are .*'name'",
        ),
        (
            HEAD + "[process]\nsmin = 1.0\n" + LEVEL,
            r"\[process\] of .* has \['smin'\].*known are \['s_min', 's_max'",
        ),
        (HEAD + "[training]\nstep = 5\n" + LEVEL, r"\[training\] of .* has \['step'\], which is not known"),
        (
            SMALLEST + LEVEL + "depth = 2\n",
            r"\[\[levels\]\] number 2 of .* has \['depth'\], which is not known",
        ),
        (LEVEL, r"ladder\.toml is incomplete: write name = \.\.\., shape = \.\.\.\."),
        (
            HEAD + "[[levels]]\nfolds = [4]\n",
            r"\[\[levels\]\] number 1 of .* is incomplete: write width = \.\.\.\.",
        ),
        (SMALLEST + "blocks 2", r"ladder\.toml is not valid TOML: .*line 8"),
        (SMALLEST + "width = 5\n", r"ladder\.toml is not valid TOML"),
        (HEAD, r"ladder\.toml has no \[\[levels\]\] tables; write one per level, cheapest first"),
        (HEAD + "[levels]\nwidth = 4\n", r"ladder\.toml has no \[\[levels\]\] tables"),
        (HEAD + "levels = [4, 8]\n", r"\[\[levels\]\] number 1 of .* is 4; a table of settings is expected"),
        ("training = 5\n" + SMALLEST, r"\[training\] of .* is 5; a table of settings is expected"),
        (
            SMALLEST + 'kind = "cnn"\n',
            r"number 1 of .* has kind = 'cnn', which is not known; write one of \('unet', 'dit'\)",
        ),
        (
            HEAD + '[[levels]]\nkind = "dit"\nwidth = 4\nfolds = [4]\n',
            r"\['folds'\], which is not known; known are \['width', 'patch', 'depth', 'heads', 'input_skip'\]",
        ),
        (
            "classes = 0\n" + SMALLEST,
            r"ladder\.toml: classes = 0; an integer of at least 1 is expected, or none",
        ),
        ("classes = true\n" + SMALLEST, r"ladder\.toml: classes = True; an integer of at least 1"),
        (
            'prediction = "score"\n' + SMALLEST,
            r"prediction = 'score' is not known; write one of \('eps', 'x0', 'v', 'velocity'\)",
        ),
        (
            HEAD + "[process]\ns_min = 90.0\n" + LEVEL,
            r"\[process\] of .*0 < s_min < s_max.*s_min=90\.0, s_max=80\.0",
        ),
    ],
    ids=[
        "unknown key",
        "unknown key of the process",
        "unknown key of the training",
        "unknown key of a level",
        "missing keys",
        "missing key of a level",
        "malformed",
        "key written twice",
        "no levels",
        "levels in single brackets",
        "levels that are numbers",
        "a number for a table",
        "kind",
        "key of another kind",
        "classes",
        "classes that are no number",
        "prediction",
        "process",
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "line, message",
    [
        ("steps = 0", "steps = 0; an integer of at least 1"),
        ("steps = true", "steps = True; an integer of at least 1"),
        ("steps = 2.5", r"steps = 2\.5; an integer of at least 1"),
        ("match_steps = -1", "match_steps = -1; an integer of at least 0"),
        ("batch_size = 0", "batch_size = 0; an integer of at least 1"),
        ("warmup_steps = -1", "warmup_steps = -1; an integer of at least 0"),
        ("seed = -1", "seed = -1; an integer of at least 0"),
        ("learning_rate = 0.0", r"learning_rate = 0\.0; a positive number"),
        ("learning_rate = nan", "learning_rate = nan; a positive number"),
        ("match_learning_rate = inf", "match_learning_rate = inf; a positive number"),
        ('learning_rate = "fast"', "learning_rate = 'fast'; a positive number"),
        ("clip_norm = -1.0", r"clip_norm = -1\.0; a positive number"),
        ("ema_decay = 1.0", r"ema_decay = 1\.0; a number in \[0, 1\)"),
        ("ema_decay = -0.1", r"ema_decay = -0\.1; a number in \[0, 1\)"),
        ("label_dropout = 1.5", r"label_dropout = 1\.5; a number in \[0, 1\]"),
        ('label_dropout = "no"', r"label_dropout = 'no'; a number in \[0, 1\]"),
        ('precision = "half"', r"precision = 'half' is not known; write one of \('float32', 'bfloat16'\)"),
        ("match_log_normal = 0.5", r"match_log_normal = 0\.5; the mean and the positive standard deviation"),
        ("match_log_normal = [0.5]", r"match_log_normal = \(0\.5,\); the mean and the positive"),
        ("match_log_normal = [0.5, 0.0]", r"match_log_normal = \(0\.5, 0\.0\).*for example \[0\.5, 1\.6\]"),
        ("match_log_normal = [0.5, -1.0]", r"match_log_normal = \(0\.5, -1\.0\); the mean"),
        ("match_log_normal = [inf, 1.0]", r"match_log_normal = \(inf, 1\.0\); the mean"),
        ('match_log_normal = ["a", "b"]', r"match_log_normal = \('a', 'b'\); the mean"),
    ],
    ids=lambda x: x if " = " in x and ";" not in x else "",
)
def test_a_training_setting_out_of_range_is_refused(tmp_path, line, message):
    # The table's name comes before the setting's, so that the line in the file is found.
    with pytest.raises(ValueError, match=r"\[training\] of .*ladder\.toml: " + message):
        read(tmp_path, HEAD + f"[training]\n{line}\n" + LEVEL)


@pytest.mark.parametrize(
    "change, message",
    [
        (("width = 4", "width = 0"), "width=0; a positive integer"),
        (("width = 4", 'width = "4"'), "width='4'; a positive integer"),
        (("folds = [4]", "folds = [3]"), r"images of 4 x 4 with folds=\(3,\).*multiples of 3"),
        (("folds = [4]", "folds = 4"), "folds=4; a list of integers"),
        (("blocks = [1]", "blocks = [1, 1]"), "one entry per resolution"),
        (("multipliers = [1]", "multipliers = [0]"), r"multipliers=\(0,\); a list of integers of at least 1"),
    ],
    ids=lambda x: x[1] if isinstance(x, tuple) else "",
)
def test_a_level_that_makes_no_network_is_refused_by_number(tmp_path, change, message):
    with pytest.raises(ValueError, match=r"\[\[levels\]\] number 2: UNet .*" + message):
        read(tmp_path, SMALLEST + LEVEL.replace(*change))


def test_a_dit_that_makes_no_network_is_refused_by_number(tmp_path):
    level = '[[levels]]\nkind = "dit"\nwidth = 4\npatch = 3\n'
    with pytest.raises(ValueError, match=r"\[\[levels\]\] number 2: DiT .*4 x 4 with patch=3"):
        read(tmp_path, SMALLEST + level)


def test_a_shape_that_is_no_image_is_refused(tmp_path):
    with (
        as_user(),
        pytest.raises(ValueError, match=r"shape=\(4, 4\); \(height, width, channels\) is expected"),
    ):
        read(tmp_path, SMALLEST.replace("[4, 4, 1]", "[4, 4]"))


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "ladder.toml", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{path} is not a file; the TOML file of a ladder"):
            read_config(path)


def test_networks_are_decided_by_the_seed(tmp_path):
    def networks(seed):
        return read(tmp_path, HEAD + f"[training]\nseed = {seed}\n" + LEVEL + LEVEL).networks()

    first, again, other = networks(3), networks(3), networks(4)
    assert eqx.tree_equal(first, again)
    assert not eqx.tree_equal(first[0], other[0])
    # Two levels of the same sizes are two networks.
    assert not eqx.tree_equal(first[0], first[1])


def test_the_shipped_description_is_read():
    config = read_config(SHIPPED)
    assert config.name == "fashion_mnist" and config.shape == (28, 28, 1)
    assert len(config.levels) == 4
    # It was written before there were labels, attention and other kinds.
    assert config.classes is None and all(isinstance(level, Level) for level in config.levels)
    assert all(level.attention is None for level in config.levels)
