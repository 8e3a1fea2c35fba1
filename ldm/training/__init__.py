"""LightningModules, optimisation, callbacks: with ``data.module`` the only place below build to know Lightning."""
