"""How people are told: notices, receivers, and the delivery that outlives outages."""
