"""Makes the named S3 buckets where they are missing; the store is AWS_ENDPOINT_URL."""

import sys

import boto3

if __name__ == "__main__":
    s3 = boto3.client("s3")
    existing = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for name in sys.argv[1:]:
        if name not in existing:
            s3.create_bucket(Bucket=name)
        print(name, "exists" if name in existing else "made")
