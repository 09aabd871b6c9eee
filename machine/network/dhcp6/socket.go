//go:build linux

package dhcp6

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	clientPort = 546
	serverPort = 547
)

// allServers is All_DHCP_Relay_Agents_and_Servers.
var allServers = netip.MustParseAddr("ff02::1:2")

// A Socket is a Conn on an interface. It needs CAP_NET_RAW and
// CAP_NET_BIND_SERVICE.
type Socket struct {
	name string
	c    *net.UDPConn
}

// OpenSocket opens a socket on an interface.
func OpenSocket(ctx context.Context, name string) (*Socket, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var bound error
		if err := raw.Control(func(fd uintptr) {
			bound = unix.BindToDevice(int(fd), name)
			if bound == nil {
				bound = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			}
		}); err != nil {
			return err
		}
		return bound
	}}
	c, err := config.ListenPacket(ctx, "udp6", fmt.Sprintf("[::]:%d", clientPort))
	if err != nil {
		return nil, fmt.Errorf("DHCPv6 on %s: %w", name, err)
	}
	return &Socket{name, c.(*net.UDPConn)}, nil
}

// Close closes the socket.
func (s *Socket) Close() error { return s.c.Close() }

// Send implements Conn.
func (s *Socket) Send(message []byte) error {
	_, err := s.c.WriteToUDPAddrPort(message, netip.AddrPortFrom(allServers.WithZone(s.name), serverPort))
	return err
}

// Receive implements Conn. What does not come from the link is passed over.
func (s *Socket) Receive(ctx context.Context) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = s.c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 4096)
	for {
		n, from, err := s.c.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("DHCPv6 on %s: %w", s.name, err)
		}
		if from.Addr().IsLinkLocalUnicast() {
			return buf[:n], nil
		}
	}
}
