//go:build linux

package ndp

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/kilnhq/kiln/machine/network/rawsocket"
)

// hopLimit is that of messages that no router has passed on.
const hopLimit = 255

// A Socket is a Conn on an interface. It needs CAP_NET_RAW.
type Socket struct {
	name  string
	index int
	f     *os.File
}

// OpenSocket opens a socket on an interface.
func OpenSocket(name string, index int) (*Socket, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
	if err != nil {
		return nil, fmt.Errorf("router advertisements on %s: %w", name, err)
	}
	// A set bit keeps the type out.
	var filter unix.ICMPv6Filter
	for i := range filter.Data {
		filter.Data[i] = 0xffffffff
	}
	filter.Data[typeAdvertisement>>5] &^= 1 << (typeAdvertisement & 31)
	err = unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter)
	for option, value := range map[int]int{unix.IPV6_RECVHOPLIMIT: 1, unix.IPV6_MULTICAST_HOPS: hopLimit, unix.IPV6_MULTICAST_IF: index} {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, option, value)
		}
	}
	if err == nil {
		err = unix.BindToDevice(fd, name)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("router advertisements on %s: %w", name, err)
	}
	return &Socket{name, index, os.NewFile(uintptr(fd), "icmp6")}, nil
}

// Close closes the socket.
func (s *Socket) Close() error { return s.f.Close() }

// Solicit implements Conn. The kernel makes the check sum.
func (s *Socket) Solicit(message []byte) error {
	err := rawsocket.Send(s.f, message, &unix.SockaddrInet6{ZoneId: uint32(s.index), Addr: netip.IPv6LinkLocalAllRouters().As16()})
	if err != nil {
		return fmt.Errorf("router solicitation on %s: %w", s.name, err)
	}
	return nil
}

// Receive implements Conn.
func (s *Socket) Receive(ctx context.Context) ([]byte, netip.Addr, error) {
	buf, oob := make([]byte, 4096), make([]byte, 128)
	for {
		n, oobn, from, err := rawsocket.Receive(ctx, s.f, buf, oob)
		if err != nil {
			return nil, netip.Addr{}, fmt.Errorf("router advertisements on %s: %w", s.name, err)
		}
		if router, ok := from.(*unix.SockaddrInet6); ok && local(oob[:oobn]) {
			return buf[:n], netip.AddrFrom16(router.Addr), nil
		}
	}
}

// local says whether a message's hop limit is the greatest.
func local(oob []byte) bool {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return false
	}
	for _, m := range messages {
		if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT && len(m.Data) >= 4 {
			return binary.NativeEndian.Uint32(m.Data) == hopLimit
		}
	}
	return false
}
