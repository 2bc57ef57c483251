"""What `distil` returns."""

import dataclasses

from .._ladder import Ladder, PredictorLadder

# Budgets at which a report says what the levels are worth.
_BUDGETS = (2.0, 4.0, 8.0)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Distillation:
    """What [`mlem_jax.diffusion.distil`][] made. `print` it for a report.

    - `ladder`: the levels and, as the finest, the network they were made for; calibrated, unless without pilots.
    - `levels`: the new levels alone, as they were trained, with a card of what was measured.
    """

    ladder: PredictorLadder
    levels: Ladder

    def __repr__(self) -> str:
        return f"<Distillation: {len(self.levels.networks)} levels for {self.levels.config.name!r}>"

    def __str__(self) -> str:
        card = self.levels.card
        cost, own = card["cost"], card["network_flops"]
        to_finest, to_data = card["held_out_loss"]["to_finest"], card["held_out_loss"]["data"]
        lines = [
            f"Levels distilled on {card['distilled_on']}, {card['training_images']:,} images",
            "level    MFLOP  parameters  cost each  to network  to image  trained for",
        ]
        for k, flops in enumerate(card["flops_per_image"]):
            lines.append(
                f"{k + 1:5d}  {flops / 1e6:7.2f}  {card['parameters'][k]:10,}  {flops / own:9.4f}  "
                f"{to_finest[k]:10.4f}  {to_data[k]:8.4f}  {cost['levels'][k]:11,.0f}"
            )
        lines += [
            f"network  {own / 1e6:5.1f}{'':14}{1:9.4f}{0:12.4f}{to_data[-1]:10.4f}  {cost['network']:11,}",
            f"(cost: in evaluations of the network on one image; so is the training's, beside {cost['samples']:,} for "
            "its own samples;",
            "to network, to image: mean squared distance of v to the network's and to that of the held-out image)",
        ]
        if "timed" in card:
            timed = card["timed"]
            each = ", ".join(f"{1e3 * seconds:.3g}" for seconds in (*timed["measured"], timed["network"]))
            lines.append(f"milliseconds for an image, in batches of 32 on {timed['device']}: {each}")
        for budget in _BUDGETS if self.ladder.calibrations else ():
            try:
                plan = self.ladder.plan(budget=budget)
                used = ", ".join(str(level + 1) for level in plan.levels)
                lines.append(
                    f"plan at {budget:g} evaluations: levels {used}, {len(plan.ts) - 1} steps, predicted error "
                    f"{plan.error:.3g}"
                )
            except ValueError as error:
                lines.append(f"no plan at {budget:g} evaluations: {error}")
        return "\n".join(lines)
