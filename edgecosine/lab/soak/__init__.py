"""More is asked of a cluster than it can do, for long: does every request end, is all as before?"""
