"""Many files into one folder: on Dask, resumable after any end, nothing half-written and nothing twice."""
