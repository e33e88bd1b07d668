"""The tables and figures of Wang, Zhou and Bilmes (ICML 2019), measured anew with this package."""
