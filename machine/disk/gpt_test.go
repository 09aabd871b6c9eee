package disk

import (
	"encoding/binary"
	"hash/crc32"
)

// fixHeader makes the checksum of the header in sector 1 right.
func fixHeader(data []byte) {
	le := binary.LittleEndian
	h := data[512:1024]
	length := le.Uint32(h[12:])
	if length < 92 || length > 512 {
		return
	}
	le.PutUint32(h[16:], 0)
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:length]))
}
