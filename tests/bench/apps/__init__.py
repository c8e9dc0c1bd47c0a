"""The applications that are measured beside Firstseen."""
