"""LightningModules, optimisation and callbacks: with ``data.module`` the only place below build that knows Lightning."""
