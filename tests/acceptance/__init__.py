"""The whole of it: real server processes, real HTTP, real Ray, real kills."""
