"""Speed, memory and strength against peers and floors, measured in the same run and with the stages' allocator."""

from pipeline.allocation import keep_freed_memory

keep_freed_memory()
