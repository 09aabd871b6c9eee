//go:build linux

package dhcp4

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/network/rawsocket"
)

const (
	// RFC 5227 asks for probes over 7 s, on networks of its time. A switch
	// answers in a millisecond, and a node wants its address now.
	probes     = 2
	probeDelay = 150 * time.Millisecond
)

// A Socket is a Conn on an Ethernet interface that need not have an address. It
// needs CAP_NET_RAW and CAP_NET_BIND_SERVICE.
type Socket struct {
	name    string
	index   int
	mac     [6]byte
	ip      *os.File // a packet socket
	udp     int      // for Send, bound to udpFrom; -1: none yet
	udpFrom netip.Addr
}

// OpenSocket opens a socket on an interface.
func OpenSocket(name string, index int, address net.HardwareAddr) (*Socket, error) {
	mac, err := hardwareAddr(address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s := &Socket{name: name, index: index, mac: mac, udp: -1}
	if s.ip, err = openPacket(index, unix.ETH_P_IP, serverFilter()); err != nil {
		return nil, fmt.Errorf("DHCP on %s: packet socket: %w", name, err)
	}
	return s, nil
}

// Close closes the socket.
func (s *Socket) Close() error {
	if s.udp >= 0 {
		unix.Close(s.udp)
	}
	return s.ip.Close()
}

// openPacket opens a socket for packets of one protocol, without their Ethernet
// headers.
func openPacket(index, protocol int, filter []unix.SockFilter) (*os.File, error) {
	// Protocol 0 receives nothing until the filter is there and bind names it.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1)
	if err == nil && filter != nil {
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network(protocol), Ifindex: index})
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "packet"), nil
}

// serverFilter passes what is UDP, no later fragment, and goes to the client's
// port.
func serverFilter() []unix.SockFilter {
	const (
		loadByte = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		loadHalf = unix.BPF_LD | unix.BPF_H | unix.BPF_ABS
		equal    = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		bitsSet  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	)
	return []unix.SockFilter{
		{Code: loadByte, K: 9},
		{Code: equal, K: protoUDP, Jf: 6},
		{Code: loadHalf, K: 6},
		{Code: bitsSet, K: 0x1fff, Jt: 4},
		{Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_IND, K: 2},
		{Code: equal, K: clientPort, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x10000},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
}

// network returns a number in the byte order of the network.
func network(n int) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], uint16(n))
	return binary.NativeEndian.Uint16(b[:])
}

// Broadcast implements Conn.
func (s *Socket) Broadcast(from netip.Addr, message []byte) error {
	if err := sendAll(s.ip, s.index, unix.ETH_P_IP, appendFrame(nil, from, message)); err != nil {
		return fmt.Errorf("send on %s: %w", s.name, err)
	}
	return nil
}

func sendAll(f *os.File, index, protocol int, frame []byte) error {
	return rawsocket.Send(f, frame, &unix.SockaddrLinklayer{Protocol: network(protocol), Ifindex: index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}})
}

// Send implements Conn. The socket stays open, so that the kernel does not tell
// the server that nobody listens; the answer is read from the packet socket.
func (s *Socket) Send(from, to netip.Addr, message []byte) error {
	if s.udp < 0 || s.udpFrom != from {
		if s.udp >= 0 {
			unix.Close(s.udp)
			s.udp = -1
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("send on %s: %w", s.name, err)
		}
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err == nil {
			err = unix.BindToDevice(fd, s.name)
		}
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Port: clientPort, Addr: from.As4()})
		}
		if err != nil {
			unix.Close(fd)
			return fmt.Errorf("send from %v on %s: %w", from, s.name, err)
		}
		s.udp, s.udpFrom = fd, from
	}
	if err := unix.Sendto(s.udp, message, 0, &unix.SockaddrInet4{Port: serverPort, Addr: to.As4()}); err != nil {
		return fmt.Errorf("send to %v on %s: %w", to, s.name, err)
	}
	return nil
}

// Receive implements Conn. What is no message of a server is passed over.
func (s *Socket) Receive(ctx context.Context) ([]byte, error) {
	for {
		frame, checked, err := receive(ctx, s.ip)
		if err != nil {
			return nil, fmt.Errorf("receive on %s: %w", s.name, err)
		}
		if m, err := message(frame, checked); err == nil {
			return m, nil
		}
	}
}

// receive returns the next packet for this host, and whether its check sum has
// been made: those of a peer on the same machine are left to the hardware, and
// never made.
func receive(ctx context.Context, f *os.File) (frame []byte, checked bool, err error) {
	buf, oob := make([]byte, 4096), make([]byte, 256)
	for {
		n, oobn, from, err := rawsocket.Receive(ctx, f, buf, oob)
		if err != nil {
			return nil, false, err
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OTHERHOST && ll.Pkttype != unix.PACKET_OUTGOING {
			return buf[:n], hasChecksum(oob[:oobn]), nil
		}
	}
}

func hasChecksum(oob []byte) bool {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return true
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 4 {
			return binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_CSUMNOTREADY == 0
		}
	}
	return true
}

// Claim implements Conn.
func (s *Socket) Claim(ctx context.Context, addr netip.Addr) (net.HardwareAddr, error) {
	return claim(ctx, s.name, s.index, s.mac, addr)
}

// Claim asks the network of an interface for a host that has the address, and
// returns its hardware address. If there is none, it says that this host has it
// now. It sends ARP probes and an announcement, RFC 5227.
func Claim(ctx context.Context, name string, index int, address net.HardwareAddr, addr netip.Addr) (net.HardwareAddr, error) {
	mac, err := hardwareAddr(address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return claim(ctx, name, index, mac, addr)
}

func claim(ctx context.Context, name string, index int, mac [6]byte, addr netip.Addr) (net.HardwareAddr, error) {
	f, err := openPacket(index, unix.ETH_P_ARP, nil)
	if err != nil {
		return nil, fmt.Errorf("ARP on %s: packet socket: %w", name, err)
	}
	defer f.Close()
	for range probes {
		probe := arp{fromMAC: mac, fromIP: netip.IPv4Unspecified(), toIP: addr}
		if err := sendAll(f, index, unix.ETH_P_ARP, probe.marshal()); err != nil {
			return nil, fmt.Errorf("ARP on %s: %w", name, err)
		}
		other, err := listen(ctx, f, addr, mac)
		if err != nil {
			return nil, fmt.Errorf("ARP on %s: %w", name, err)
		}
		if other != nil {
			return other, nil
		}
	}
	ours := arp{fromMAC: mac, fromIP: addr, toIP: addr}
	if err := sendAll(f, index, unix.ETH_P_ARP, ours.marshal()); err != nil {
		return nil, fmt.Errorf("ARP on %s: %w", name, err)
	}
	return nil, nil
}

// listen waits for somebody who claims the address.
func listen(ctx context.Context, f *os.File, addr netip.Addr, mac [6]byte) (net.HardwareAddr, error) {
	wait, cancel := context.WithTimeout(ctx, probeDelay)
	defer cancel()
	for {
		frame, _, err := receive(wait, f)
		if wait.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		if a, err := parseARP(frame); err == nil && a.claims(addr, mac) {
			return net.HardwareAddr(a.fromMAC[:]), nil
		}
	}
}
