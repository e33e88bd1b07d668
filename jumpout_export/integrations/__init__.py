"""Callbacks for trainers of other packages, one file each; only who imports a file needs its package."""
