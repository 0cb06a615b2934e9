"""Several hosts: launchers, restarts, health, plan, ledger. No model, data set or training step."""
