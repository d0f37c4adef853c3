"""`check=…`: examinations of how a run is computed, in the place of the run."""

from ldmlab.config.compose import Composed


def check(composed: Composed) -> None:
    """The examination that `check` names; UserError when it finds something."""
    if composed.cfg.check == "device":
        from ldmlab.pipeline.check_device import check_device

        check_device(composed)
    else:
        from ldmlab.pipeline.check_determinism import check_determinism

        check_determinism(composed)
