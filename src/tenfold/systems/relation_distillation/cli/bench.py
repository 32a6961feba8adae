"""The verb ``bench``."""


def bench(*, tokens: int = 197, batch: int = 4, heads: int = 12, width_s: int = 48, width_t: int = 64) -> str:
    """Time the forms of the loss on this machine against the direct form, with their extra memory.

    Args:
        tokens: number of tokens N.
        batch: samples.
        heads: heads.
        width_s: the student's head width.
        width_t: the teacher's head width.
    """
    from tenfold.systems.relation_distillation.evaluation.loss_forms import compare_forms

    rows = compare_forms(tokens=tokens, batch=batch, heads=heads, width_s=width_s, width_t=width_t)
    lines = [f"{'form':<10} {'ms':>9} {'speed':>7} {'MiB':>9} {'memory':>7}"]
    lines += [
        f"{row['form']:<10} {row['milliseconds']:>9.1f} {row['speedup']:>6.2f}x {row['mebibytes']:>9.1f} "
        f"{row['memory_ratio']:>6.2f}x"
        for row in rows
    ]
    return "\n".join(lines)
