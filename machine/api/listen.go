//go:build linux

package api

import (
	"errors"
	"net"
	"net/netip"
	"sync"
)

// How many connections there may be, from everywhere and from one address.
const (
	maxConns        = 256
	maxConnsAddress = 32
)

// limited is a listener that closes connections beyond a limit at once, so that
// one address cannot keep the others out.
type limited struct {
	net.Listener
	all, address int

	mu    sync.Mutex
	total int
	from  map[netip.Addr]int
}

func limit(l net.Listener, all, address int) *limited {
	return &limited{Listener: l, all: all, address: address, from: map[netip.Addr]int{}}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var from netip.Addr // the zero address for what has none
		if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
			from = a.Addr().Unmap().WithZone("")
			if from.Is6() { // who has one has a /64
				p, err := from.Prefix(64)
				if err == nil {
					from = p.Addr()
				}
			}
		}
		if l.enter(from) {
			return &counted{Conn: c, leave: sync.OnceFunc(func() { l.leave(from) })}, nil
		}
		c.Close()
	}
}

func (l *limited) enter(from netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.all || l.from[from] >= l.address {
		return false
	}
	l.total++
	l.from[from]++
	return true
}

func (l *limited) leave(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.from[from]--; l.from[from] == 0 {
		delete(l.from, from)
	}
}

// counted is a connection that says when it is closed.
type counted struct {
	net.Conn
	leave func()
}

func (c *counted) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// CloseWrite ends what is sent, if the connection knows how to.
func (c *counted) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}
