"""Does it pay for me? A model and a machine are measured for some seconds, and every layout is computed from that.

    from syngrad.planner import plan
    answer = plan("fashion-mlp", workers=2, link="20ms,100mbit")
    print(answer.best.layout, answer.best.samples_per_s)

Nothing is trained: how many samples a layout needs to a loss is not in it, see `plan`.
"""

from syngrad.planner.answer import plan
from syngrad.planner.layouts import Cluster, Layout
from syngrad.planner.prediction import Prediction, predict
from syngrad.planner.quantities import Estimates, Linear, Link, Machine, Profile, Unit
from syngrad.planner.ranking import Change, Plan
from syngrad.planner.recursion import Variation
from syngrad.planner.simulation import Simulation, simulate_layout
from syngrad.planner.worker_failures import Failures

__all__ = [
    "Change",
    "Cluster",
    "Estimates",
    "Failures",
    "Layout",
    "Linear",
    "Link",
    "Machine",
    "Plan",
    "Prediction",
    "Profile",
    "Simulation",
    "Unit",
    "Variation",
    "plan",
    "predict",
    "simulate_layout",
]
