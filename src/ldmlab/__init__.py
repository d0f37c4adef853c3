"""ldmlab: how much should an autoencoder compress before diffusion takes over?"""

__version__ = "0.1.0"
