package dhcp4

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

const (
	ipHeader  = 20
	udpHeader = 8
	protoUDP  = 17
)

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// appendFrame appends the IPv4 packet with a UDP datagram from a client to all
// servers: 20 bytes of IPv4 header (RFC 791), 8 bytes of UDP header (RFC 768)
// and the message.
func appendFrame(b []byte, from netip.Addr, message []byte) []byte {
	src, dst := from.As4(), broadcast.As4()
	at := len(b)
	b = append(b, make([]byte, ipHeader+udpHeader)...)
	b = append(b, message...)
	ip := b[at:]
	ip[0] = 0x45
	ip[1] = 0xc0 // internetwork control, as routers' own messages
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	ip[8] = 64
	ip[9] = protoUDP
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	binary.BigEndian.PutUint16(ip[10:], ^sum(0, ip[:ipHeader]))
	udp := ip[ipHeader:]
	binary.BigEndian.PutUint16(udp[0:], clientPort)
	binary.BigEndian.PutUint16(udp[2:], serverPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	check := ^sum(pseudo(ip), udp)
	if check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], check)
	return b
}

// message returns the message in the IPv4 packet that a server sent. The check
// sum of UDP is not looked at if the kernel left it to the hardware.
func message(frame []byte, checked bool) ([]byte, error) {
	if len(frame) < ipHeader || frame[0]>>4 != 4 {
		return nil, fmt.Errorf("%d bytes are no IPv4 packet", len(frame))
	}
	header, total := int(frame[0]&0xf)*4, int(binary.BigEndian.Uint16(frame[2:]))
	if header < ipHeader || total < header+udpHeader || total > len(frame) {
		return nil, fmt.Errorf("IPv4 packet with a header of %d bytes and %d in all, in a frame of %d", header, total, len(frame))
	}
	if frame[9] != protoUDP || binary.BigEndian.Uint16(frame[6:])&0x3fff != 0 {
		return nil, fmt.Errorf("IPv4 packet of protocol %d, or a fragment, where a UDP datagram is wanted", frame[9])
	}
	if sum(0, frame[:header]) != 0xffff {
		return nil, fmt.Errorf("IPv4 packet with a wrong check sum")
	}
	ip := frame[:total]
	udp := ip[header:]
	size := int(binary.BigEndian.Uint16(udp[4:]))
	if size < udpHeader || size > len(udp) {
		return nil, fmt.Errorf("UDP datagram of %d bytes in %d", size, len(udp))
	}
	udp = udp[:size]
	if from, to := binary.BigEndian.Uint16(udp), binary.BigEndian.Uint16(udp[2:]); from != serverPort || to != clientPort {
		return nil, fmt.Errorf("UDP datagram from port %d to %d, not from %d to %d", from, to, serverPort, clientPort)
	}
	if checked && binary.BigEndian.Uint16(udp[6:]) != 0 {
		// The pseudo header has the length of the datagram, not of the packet.
		if sum(pseudoOf(ip, size), udp) != 0xffff {
			return nil, fmt.Errorf("UDP datagram with a wrong check sum")
		}
	}
	return udp[udpHeader:], nil
}

// pseudo returns the sum of the header that UDP's check sum covers as well, for
// a packet that has nothing but a datagram and the shortest header.
func pseudo(ip []byte) uint32 { return pseudoOf(ip, len(ip)-ipHeader) }

func pseudoOf(ip []byte, size int) uint32 {
	return uint32(sum(0, ip[12:20])) + protoUDP + uint32(size)
}

// sum is the ones' complement sum of RFC 1071.
func sum(start uint32, data []byte) uint16 {
	s := uint64(start)
	for ; len(data) >= 2; data = data[2:] {
		s += uint64(binary.BigEndian.Uint16(data))
	}
	if len(data) == 1 {
		s += uint64(data[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// An arp packet, RFC 826, of Ethernet and IPv4: 28 bytes.
type arp struct {
	reply          bool
	fromMAC, toMAC [6]byte
	fromIP, toIP   netip.Addr
}

const arpSize = 28

func (a *arp) marshal() []byte {
	b := make([]byte, arpSize)
	copy(b, []byte{0, 1, 8, 0, 6, 4, 0, 1})
	if a.reply {
		b[7] = 2
	}
	copy(b[8:], a.fromMAC[:])
	copy(b[18:], a.toMAC[:])
	for at, ip := range map[int]netip.Addr{14: a.fromIP, 24: a.toIP} {
		v := ip.As4()
		copy(b[at:], v[:])
	}
	return b
}

func parseARP(b []byte) (*arp, error) {
	if len(b) < arpSize || [6]byte(b) != [6]byte{0, 1, 8, 0, 6, 4} || b[6] != 0 || b[7] != 1 && b[7] != 2 {
		return nil, fmt.Errorf("%d bytes are no ARP packet of Ethernet and IPv4", len(b))
	}
	return &arp{reply: b[7] == 2, fromMAC: [6]byte(b[8:]), fromIP: netip.AddrFrom4([4]byte(b[14:])),
		toMAC: [6]byte(b[18:]), toIP: netip.AddrFrom4([4]byte(b[24:]))}, nil
}

// claims says whether the packet shows that another host than mac has the
// address, or is about to take it (RFC 5227, section 2.1.1).
func (a *arp) claims(addr netip.Addr, mac [6]byte) bool {
	return a.fromMAC != mac && (a.fromIP == addr || a.fromIP.IsUnspecified() && a.toIP == addr && !a.reply)
}
