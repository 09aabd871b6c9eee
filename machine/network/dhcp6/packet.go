// Package dhcp6 is a client of the Dynamic Host Configuration Protocol for IPv6:
// RFC 8415 and, for the options, RFC 3646 (name servers), 5908 and 4075 (time).
//
// A message is a UDP datagram from port 546 (client) to port 547 (server), or
// back. Clients send to the group ff02::1:2 on the link. Numbers are
// big-endian:
//
//	0  type of the message
//	1  transaction, 3 bytes, the same in the answer
//	4  options: 2 bytes of code, 2 of length, so many bytes
//
// Servers and clients are known by a DUID, opaque bytes that begin with their
// type. A client asks for an address for an identity association (IA): the
// option IA_NA holds its number (4 bytes), the times T1 and T2 in seconds, and
// options again: IAADDR with an address (16 bytes), how long it is preferred and
// how long valid, in seconds.
//
// SOLICIT asks all servers, they answer ADVERTISE; REQUEST asks one of them,
// which answers REPLY. If both sides want (rapid commit) the answer to SOLICIT
// is the REPLY. RENEW asks the same server from T1 on, REBIND any from T2 on.
// CONFIRM asks whether addresses are right for the link. INFORMATION-REQUEST is
// for what is not an address.
//
// Routes and the length of the network's prefix are no matter of DHCPv6 but of
// router advertisements: see package ndp.
package dhcp6

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/kilnhq/kiln/machine/network/domain"
)

// Types of messages.
const (
	solicit   = 1
	advertise = 2
	request   = 3
	confirm   = 4
	renew     = 5
	rebind    = 6
	reply     = 7
	inform    = 11
)

// Codes of options.
const (
	optClientID    = 1
	optServerID    = 2
	optIANA        = 3
	optIAAddr      = 5
	optRequest     = 6
	optElapsed     = 8
	optStatus      = 13
	optRapidCommit = 14
	optDNS         = 23
	optSearch      = 24
	optSNTP        = 31
	optRefresh     = 32
	optNTP         = 56
)

// Codes of status.
const (
	statusSuccess   = 0
	statusNotOnLink = 4
)

const (
	headerSize = 4
	iaSize     = 12
	addrSize   = 24
	maxDUID    = 130 // RFC 8415, section 11.1, with the type
	maxServers = 8
	maxAddrs   = 8
	infinite   = 0xffffffff
)

// DUIDFromMAC returns the DUID of an Ethernet interface (DUID-LL).
func DUIDFromMAC(mac []byte) []byte { return append([]byte{0, 3, 0, 1}, mac...) }

// DUIDFromUUID returns the DUID of a machine (DUID-UUID, RFC 6355).
func DUIDFromUUID(id [16]byte) []byte { return append([]byte{0, 4}, id[:]...) }

// A status is what a server says about a message or an IA.
type status struct {
	code uint16
	text string
}

func (s status) Error() string {
	return fmt.Sprintf("the server says status %d, %.80q", s.code, s.text)
}

// An answer is a message of a server that concerns us.
type answer struct {
	kind    byte
	xid     uint32
	client  []byte
	server  []byte
	rapid   bool
	status  status
	ia      *ia
	info    Info
	refresh time.Duration // 0: not said
}

// An ia is the identity association that has our number.
type ia struct {
	t1, t2 time.Duration
	status status
	addrs  []Address
}

// An Address of a lease.
type Address struct {
	Addr      netip.Addr
	Preferred time.Duration // Forever: without an end
	Valid     time.Duration
}

// Info is what a server says besides addresses.
type Info struct {
	DNS    []netip.Addr
	Search []string
	NTP    []netip.Addr
}

// Forever is a time without an end.
const Forever = time.Duration(1<<63 - 1)

func seconds(b []byte) time.Duration {
	s := binary.BigEndian.Uint32(b)
	if s == infinite {
		return Forever
	}
	return time.Duration(s) * time.Second
}

// options calls f for each option of data.
func options(data []byte, f func(code uint16, value []byte)) error {
	for len(data) > 0 {
		if len(data) < 4 || len(data) < 4+int(binary.BigEndian.Uint16(data[2:])) {
			return errors.New("DHCPv6 options end within an option")
		}
		size := int(binary.BigEndian.Uint16(data[2:]))
		f(binary.BigEndian.Uint16(data), data[4:4+size])
		data = data[4+size:]
	}
	return nil
}

// parse reads a message of a server to the IA of a number.
func parse(data []byte, iaid uint32) (*answer, error) {
	if len(data) < headerSize || data[0] != advertise && data[0] != reply {
		return nil, fmt.Errorf("%d bytes are no answer of a DHCPv6 server", len(data))
	}
	a := &answer{kind: data[0], xid: binary.BigEndian.Uint32(data) & 0xffffff}
	var inner error
	err := options(data[headerSize:], func(code uint16, v []byte) {
		switch code {
		case optClientID:
			a.client = v
		case optServerID:
			a.server = v
		case optRapidCommit:
			a.rapid = true
		case optStatus:
			a.status = parseStatus(v)
		case optIANA:
			if len(v) >= iaSize && binary.BigEndian.Uint32(v) == iaid && a.ia == nil {
				a.ia = &ia{t1: seconds(v[4:]), t2: seconds(v[8:])}
				inner = a.ia.parse(v[iaSize:])
			}
		case optDNS:
			a.info.DNS = appendAddrs(a.info.DNS, v)
		case optSearch:
			// A list that cannot be read is as good as none.
			names, _ := domain.Parse(v, false)
			a.info.Search = append(a.info.Search, names...)
		case optSNTP:
			a.info.NTP = appendAddrs(a.info.NTP, v)
		case optNTP:
			// Suboption 1 is an address; 2 and 3, a group and a name, are not
			// for us.
			_ = options(v, func(code uint16, v []byte) {
				if code == 1 && len(v) == 16 {
					a.info.NTP = appendAddrs(a.info.NTP, v)
				}
			})
		case optRefresh:
			if len(v) == 4 {
				a.refresh = seconds(v)
			}
		}
	})
	if err := errors.Join(err, inner); err != nil {
		return nil, err
	}
	if len(a.server) < 3 || len(a.server) > maxDUID {
		return nil, fmt.Errorf("answer of a DHCPv6 server with an identifier of %d bytes", len(a.server))
	}
	return a, nil
}

func (i *ia) parse(data []byte) error {
	return options(data, func(code uint16, v []byte) {
		switch {
		case code == optStatus:
			i.status = parseStatus(v)
		case code == optIAAddr && len(v) >= addrSize && len(i.addrs) < maxAddrs:
			a := Address{netip.AddrFrom16([16]byte(v)), seconds(v[16:]), seconds(v[20:])}
			// RFC 8415, section 21.6: such an address is ignored.
			if unicast(a.Addr) && a.Preferred <= a.Valid && a.Valid > 0 {
				i.addrs = append(i.addrs, a)
			}
		}
	})
}

func parseStatus(v []byte) status {
	if len(v) < 2 {
		return status{}
	}
	return status{binary.BigEndian.Uint16(v), string(v[2:])}
}

func appendAddrs(list []netip.Addr, v []byte) []netip.Addr {
	for ; len(v) >= 16 && len(list) < maxServers; v = v[16:] {
		if a := netip.AddrFrom16([16]byte(v)); unicast(a) && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

func unicast(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.Is4In6()
}

// A message is one of a client, as it is built.
type message []byte

func newMessage(kind byte, xid uint32) message {
	m := message(binary.BigEndian.AppendUint32(nil, xid&0xffffff))
	m[0] = kind
	return m
}

func (m *message) add(code uint16, value []byte) {
	*m = binary.BigEndian.AppendUint16(*m, code)
	*m = binary.BigEndian.AppendUint16(*m, uint16(len(value)))
	*m = append(*m, value...)
}

// addIA asks for addresses: those, or any. The times are for the server to say.
func (m *message) addIA(iaid uint32, addrs []Address) {
	v := binary.BigEndian.AppendUint32(nil, iaid)
	v = append(v, make([]byte, 8)...)
	inner := message(v)
	for _, a := range addrs {
		b := a.Addr.As16()
		inner.add(optIAAddr, append(b[:], make([]byte, 8)...))
	}
	m.add(optIANA, inner)
}
