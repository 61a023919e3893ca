"""Network architectures: small perceptrons of points, U-Nets of images, and the normalising flow Glow."""
