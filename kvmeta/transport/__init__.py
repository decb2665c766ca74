"""How messages travel: bytes to a server and back, or a CallFailed that says what is known of the call.

failures   what a call that failed tells, whatever carried it
grpc       over gRPC, for callers that block and for those that await
forks      no fork while a blocking call is under way
"""
