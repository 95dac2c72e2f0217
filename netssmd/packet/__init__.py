"""What a packet is. Pure: no clock, no path, no socket, no global random generator."""
