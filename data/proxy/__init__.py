# a package, so that data/proxyguard imports this proxy and no other that is installed
