"""Training: the LightningModule, its optimizer and schedule, callbacks, and the LightningCLI."""
