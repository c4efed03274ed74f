"""What a run tells while it goes on, and what may end it: `fit(..., callbacks=[EarlyStopping(), TensorBoard("runs")])`.

Derive your own from `Callback`.
"""

from syngrad.trainer.callbacks import Callback, EarlyStopping, TensorBoard

__all__ = ["Callback", "EarlyStopping", "TensorBoard"]
