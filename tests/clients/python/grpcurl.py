"""What the documents use of grpcurl, for machines without it: grpcurl.py -plaintext [-d JSON|@] ADDRESS METHOD|list"""

import argparse
import json
import sys

import grpc
from test_reflection import PROTOCOLS, Reflection

parser = argparse.ArgumentParser()
parser.add_argument("-plaintext", action="store_true", required=True)
parser.add_argument("-d", default="{}")
parser.add_argument("address")
parser.add_argument("method")
given = parser.parse_args()

with grpc.insecure_channel(given.address) as channel:
    reflection = Reflection(channel, PROTOCOLS[0])
    if given.method == "list":
        print("\n".join(sorted(reflection.services())))
    else:
        service, method = given.method.split("/")
        request = json.loads(sys.stdin.read() if given.d == "@" else given.d)
        print(json.dumps(reflection.call(service, method, request)))
