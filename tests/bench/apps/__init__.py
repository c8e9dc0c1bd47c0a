"""The applications that Firstseen is compared with."""
