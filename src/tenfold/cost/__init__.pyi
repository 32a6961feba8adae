from .measuring import Convention, count_flops, count_parameters, measure_latency, measure_peak_memory

__all__ = ["Convention", "count_flops", "count_parameters", "measure_latency", "measure_peak_memory"]
