"""The studies by name: here a new one is registered, and here what users type is read."""

from __future__ import annotations

from syngrad.errors import unknown
from syngrad.reproduce.studies.bp_lambda import BP_LAMBDA, ONLINE
from syngrad.reproduce.studies.clocks import TWO_CLOCKS
from syngrad.reproduce.studies.convolutional import CNN
from syngrad.reproduce.studies.depth import DEPTH, ONE_INTERFACE
from syngrad.reproduce.studies.estimator_cost import ESTIMATOR_COST
from syngrad.reproduce.studies.feedback import BOOTSTRAPPED, DELAYED, FEEDBACK
from syngrad.reproduce.studies.fully_connected import FCN, FCN_CIFAR10
from syngrad.reproduce.studies.reading import CHARACTERS
from syngrad.reproduce.studies.recall import COPY, REPEAT_COPY
from syngrad.reproduce.studies.unlocking import SPORADIC, UNLOCK
from syngrad.reproduce.study import Study

#: name → study; the order is that of lists and pages
STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        FCN, FCN_CIFAR10, CNN, DEPTH, ONE_INTERFACE, SPORADIC, UNLOCK, DELAYED, FEEDBACK, BOOTSTRAPPED, BP_LAMBDA,
        ONLINE, COPY, REPEAT_COPY, CHARACTERS, TWO_CLOCKS, ESTIMATOR_COST,
    )
}  # fmt: skip


def study(name: str) -> Study:
    """A study by its name.

    Raises:
        ConfigError: for an unknown one, the valid ones listed.
    """
    if name not in STUDIES:
        raise unknown("published experiment", name, STUDIES)
    return STUDIES[name]
