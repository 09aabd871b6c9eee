# kiln and a base, in an image without anything else: 'make container'.
FROM scratch
COPY bin/kiln /usr/bin/kiln
COPY out/base /base
ENV PATH=/usr/bin
ENTRYPOINT ["/usr/bin/kiln"]
