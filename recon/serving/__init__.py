"""The MRD server and client, and MRD streams: acquisitions come in one by one, images leave."""
