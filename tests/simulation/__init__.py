"""The federation's engines in one process and in virtual time: one seed decides everything that happens."""
