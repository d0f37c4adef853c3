"""The sweep launcher of ldmlab: one operating-system process per job."""
