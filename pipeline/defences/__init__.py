"""How a training loss is made to resist attacks, one file each; ``pipeline.defences.base`` says what each has."""
