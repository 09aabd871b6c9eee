package ext4

import "encoding/binary"

// A POSIX access control list is an extended attribute that programs see as
//
//	0  4  version, 2
//	4  …  entries: 2 bytes of tag, 2 of permissions, 4 of user or group
//
// and that is kept on disk with version 1 and, in entries whose tag has no user
// or group, without it.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclUser  = 0x02 // tags that name someone
	aclGroup = 0x08

	aclNobody = 1<<32 - 1 // instead of a user or group
)

func isACL(name string) bool { return name == aclAccess || name == aclDefault }

// aclToDisk translates what programs see to what is on disk.
func aclToDisk(b []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(b) < 4 || len(b)%8 != 4 || le.Uint32(b) != 2 {
		return nil, unsupported("access control list of %d bytes, wanted version 2 and entries of 8 bytes", len(b))
	}
	out := []byte{1, 0, 0, 0}
	for b = b[4:]; len(b) > 0; b = b[8:] {
		n := 4
		if tag := le.Uint16(b); tag == aclUser || tag == aclGroup {
			n = 8
		}
		out = append(out, b[:n]...)
	}
	return out, nil
}

// aclFromDisk is the reverse of aclToDisk.
func aclFromDisk(b []byte) ([]byte, error) {
	le := binary.LittleEndian
	if len(b) < 4 || le.Uint32(b) != 1 {
		return nil, corrupt("access control list of %d bytes, wanted version 1", len(b))
	}
	out := []byte{2, 0, 0, 0}
	for b = b[4:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, corrupt("access control list ends within an entry")
		}
		out = append(out, b[:4]...)
		tag := le.Uint16(b)
		b = b[4:]
		if tag != aclUser && tag != aclGroup {
			out = le.AppendUint32(out, aclNobody)
			continue
		}
		if len(b) < 4 {
			return nil, corrupt("access control list ends within an entry")
		}
		out = append(out, b[:4]...)
		b = b[4:]
	}
	return out, nil
}
