"""One step made by several processes: who they are, how their gradients become one."""
