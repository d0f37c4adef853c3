"""One function a stage: found in the store, or made. `run.execute` is their order."""
