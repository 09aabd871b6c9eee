//go:build linux

// Package rawsocket sends and receives on sockets that package net does not
// know, with the addresses and control messages of the kernel.
package rawsocket

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Send sends a datagram.
func Send(f *os.File, data []byte, to unix.Sockaddr) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) { sent = unix.Sendto(int(fd), data, 0, to) })
	return errors.Join(err, sent)
}

// Receive receives a datagram into buf, and its control messages into oob. One
// that is longer than buf is passed over. The file must not block.
func Receive(ctx context.Context, f *os.File, buf, oob []byte) (n, oobn int, from unix.Sockaddr, err error) {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = f.SetReadDeadline(time.Unix(1, 0))
		close(ended)
	})
	defer func() {
		if !stop() {
			<-ended
			_ = f.SetReadDeadline(time.Time{})
		}
	}()
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, 0, nil, err
	}
	for {
		var flags int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, oobn, flags, from, failed = unix.Recvmsg(int(fd), buf, oob, 0)
			return failed != unix.EAGAIN && failed != unix.EINTR
		})
		switch {
		case ctx.Err() != nil:
			return 0, 0, nil, ctx.Err()
		case err != nil:
			return 0, 0, nil, err
		case failed == unix.ENETDOWN:
			continue // said once; packets come again when the link is up
		case failed != nil:
			return 0, 0, nil, failed
		}
		if flags&unix.MSG_TRUNC == 0 {
			return n, oobn, from, nil
		}
	}
}
