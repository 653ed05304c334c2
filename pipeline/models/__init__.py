"""Architectures, one file each: ``Config`` and ``build(config, *, in_shape, n_classes) -> nn.Module``.

All default architectures share one stem and one head, so that only the block between them differs.
"""
