"""WHERE TO PUT WORKERS: placements and fleets, judged by the simulator."""
