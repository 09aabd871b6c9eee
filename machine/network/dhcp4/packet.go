// Package dhcp4 is a client of the Dynamic Host Configuration Protocol for IPv4
// on Ethernet: RFC 2131 and, for the options, RFC 2132, 3396, 3397 and 3442.
//
// A message is a UDP datagram from port 68 (client) to port 67 (server) or
// back. Numbers are big-endian:
//
//	  0  op       1 request, 2 reply
//	  1  htype    1, Ethernet
//	  2  hlen     6
//	  3  hops
//	  4  xid      4 bytes, chosen by the client, the same in the reply
//	  8  secs     2 bytes, seconds since the client began
//	 10  flags    2 bytes, 0x8000: answer by broadcast
//	 12  ciaddr   the client's address, when it has one
//	 16  yiaddr   the address for the client
//	 20  siaddr   of the server of the next step of a boot
//	 24  giaddr   of the relay
//	 28  chaddr   16 bytes, the client's hardware address
//	 44  sname    64 bytes, and file, 128: text, or more options (option 52)
//	236  cookie   63 82 53 63
//	240  options  a byte of code, a byte of length, and so many bytes; code 0 is
//	              padding, 255 the end. The same code again continues the option
//
// A client without an address broadcasts DISCOVER, servers OFFER an address,
// the client broadcasts a REQUEST for one of the offers, its server answers ACK
// or NAK. The address is a lease: at T1 the client asks its server to renew it,
// from T2 on it asks any server (rebinding), and at its end it gives it up.
//
// Config.Run is that client. Frame and arp read and write what is below UDP,
// since a host without an address has no sockets but those for whole frames.
package dhcp4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// Ports of UDP.
const (
	serverPort = 67
	clientPort = 68
)

const (
	opRequest = 1
	opReply   = 2

	headerSize = 240  // with the cookie
	minSize    = 300  // of BOOTP; relays and servers drop shorter messages
	maxSize    = 1472 // what we take, as option 57 says
)

var cookie = [4]byte{0x63, 0x82, 0x53, 0x63}

// messageType is the value of option 53.
type messageType byte

// Types of messages.
const (
	discover messageType = 1 + iota
	offer
	request
	decline
	ack
	nak
)

func (t messageType) String() string {
	names := [...]string{"none", "DISCOVER", "OFFER", "REQUEST", "DECLINE", "ACK", "NAK"}
	if int(t) < len(names) {
		return names[t]
	}
	return fmt.Sprintf("type %d", byte(t))
}

// Codes of options.
const (
	optPad             = 0
	optSubnetMask      = 1
	optRouter          = 3
	optDNS             = 6
	optHostname        = 12
	optDomain          = 15
	optMTU             = 26
	optNTP             = 42
	optRequestedIP     = 50
	optLeaseTime       = 51
	optOverload        = 52
	optMessageType     = 53
	optServerID        = 54
	optParameters      = 55
	optMessage         = 56
	optMaxSize         = 57
	optRenewalTime     = 58
	optRebindingTime   = 59
	optClientID        = 61
	optSearch          = 119
	optClasslessRoutes = 121
	optEnd             = 255
)

// A packet is a message. Addresses that are not set are 0.0.0.0.
type packet struct {
	op                             byte
	xid                            uint32
	secs                           uint16
	ciaddr, yiaddr, siaddr, giaddr netip.Addr
	chaddr                         [6]byte
	options                        []option // each code once, in the order of appearance
}

type option struct {
	code byte
	data []byte
}

// option returns the data of an option, nil if it is not there.
func (p *packet) option(code byte) []byte {
	for _, o := range p.options {
		if o.code == code {
			return o.data
		}
	}
	return nil
}

func (p *packet) set(code byte, data ...byte) {
	p.options = append(p.options, option{code, data})
}

func (p *packet) kind() messageType {
	if d := p.option(optMessageType); len(d) == 1 {
		return messageType(d[0])
	}
	return 0
}

// server returns the address of the server that sent p, the zero Addr if it
// does not say.
func (p *packet) server() netip.Addr {
	if a, ok := netip.AddrFromSlice(p.option(optServerID)); ok && a.Is4() && !a.IsUnspecified() {
		return a
	}
	return netip.Addr{}
}

// marshal returns p as it goes into a datagram.
func (p *packet) marshal() []byte {
	b := make([]byte, headerSize, minSize)
	b[0], b[1], b[2] = p.op, 1, 6
	binary.BigEndian.PutUint32(b[4:], p.xid)
	binary.BigEndian.PutUint16(b[8:], p.secs)
	for i, a := range []netip.Addr{p.ciaddr, p.yiaddr, p.siaddr, p.giaddr} {
		if a.Is4() {
			v := a.As4()
			copy(b[12+4*i:], v[:])
		}
	}
	copy(b[28:], p.chaddr[:])
	copy(b[236:], cookie[:])
	for _, o := range p.options {
		data := o.data
		for {
			n := min(len(data), 255)
			b = append(append(b, o.code, byte(n)), data[:n]...)
			if data = data[n:]; len(data) == 0 {
				break
			}
		}
	}
	b = append(b, optEnd)
	for len(b) < minSize {
		b = append(b, 0)
	}
	return b
}

// parse reads a message. The packet shares memory with data.
func parse(data []byte) (*packet, error) {
	if len(data) < headerSize {
		return nil, fmt.Errorf("DHCP message of %d bytes, at least %d are wanted", len(data), headerSize)
	}
	if data[1] != 1 || data[2] != 6 {
		return nil, fmt.Errorf("DHCP message for hardware type %d with addresses of %d bytes, not for Ethernet", data[1], data[2])
	}
	if [4]byte(data[236:240]) != cookie {
		return nil, fmt.Errorf("BOOTP message without the cookie of DHCP: % x", data[236:240])
	}
	p := &packet{op: data[0], xid: binary.BigEndian.Uint32(data[4:]), secs: binary.BigEndian.Uint16(data[8:]), chaddr: [6]byte(data[28:34])}
	for i, a := range []*netip.Addr{&p.ciaddr, &p.yiaddr, &p.siaddr, &p.giaddr} {
		*a = netip.AddrFrom4([4]byte(data[12+4*i:]))
	}
	if err := p.parseOptions(data[headerSize:]); err != nil {
		return nil, err
	}
	if o := p.option(optOverload); len(o) == 1 {
		// RFC 3396: file comes before sname.
		for bit, field := range [][]byte{data[108:236], data[44:108]} {
			if o[0]&(1<<bit) == 0 {
				continue
			}
			if err := p.parseOptions(field); err != nil {
				return nil, err
			}
		}
	}
	return p, nil
}

var errCut = errors.New("DHCP options end within an option")

func (p *packet) parseOptions(data []byte) error {
	for len(data) > 0 {
		code := data[0]
		switch code {
		case optPad:
			data = data[1:]
			continue
		case optEnd:
			return nil
		}
		if len(data) < 2 || len(data) < 2+int(data[1]) {
			return errCut
		}
		end := 2 + int(data[1])
		value := data[2:end:end]
		data = data[end:]
		known := false
		for i := range p.options {
			if known = p.options[i].code == code; known {
				p.options[i].data = append(p.options[i].data, value...)
				break
			}
		}
		if !known {
			p.options = append(p.options, option{code, value})
		}
	}
	return nil
}

// hardwareAddr returns the address of an Ethernet interface.
func hardwareAddr(a net.HardwareAddr) ([6]byte, error) {
	if len(a) != 6 {
		return [6]byte{}, fmt.Errorf("DHCP needs an Ethernet address of 6 bytes, not %q", a)
	}
	return [6]byte(a), nil
}
