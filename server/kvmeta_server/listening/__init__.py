"""Who hears calls: a listener turns what arrives by a transport into arrivals for the service."""
