"""The services of Headwater, the kernel that they share, and the command line."""
