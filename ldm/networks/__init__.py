"""Networks: layers, U-Net, autoencoder, discriminator, LPIPS, and where pretrained parts come from."""
