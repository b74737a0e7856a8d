"""Protobuf messages and gRPC stubs of the contract, generated from the .proto files of this folder."""
