package timesync

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// patience is how long a server gets to answer.
const patience = 3 * time.Second

// A sample is what one exchange with a server says.
type sample struct {
	server   string
	stratum  int
	offset   time.Duration // to add to our clock
	delay    time.Duration // of the exchange
	distance time.Duration // by which the offset may be wrong
	time     time.Time     // the server's
}

// exchange asks one server for the time.
func (c *Config) exchange(ctx context.Context, server string) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := c.Dial(ctx, "udp", net.JoinHostPort(server, "123"))
	if err != nil {
		return sample{}, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return sample{}, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	var random [8]byte
	rand.Read(random[:])
	cookie := binary.BigEndian.Uint64(random[:])
	start := time.Now()
	sent := c.Clock.Now()
	if _, err := conn.Write(request(cookie)); err != nil {
		return sample{}, err
	}
	r, err := await(conn, cookie)
	if err != nil {
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			err = fmt.Errorf("no answer for %v", patience)
		}
		return sample{}, err
	}
	// The clock may be stepped meanwhile, what runs between does not.
	elapsed := time.Since(start)
	if err := r.check(); err != nil {
		return sample{}, err
	}
	return c.sample(server, r, sent, elapsed)
}

// await returns the answer to a request. Others' packets and noise are passed
// over.
func await(conn net.Conn, cookie uint64) (reply, error) {
	buf := make([]byte, 512)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return reply{}, err
		}
		if r, err := parse(buf[:n]); err == nil && r.mode == modeServer && r.origin == cookie {
			return r, nil
		}
	}
}

var errImplausible = errors.New("its time cannot be")

// sample computes what a reply says: RFC 5905, section 8.
func (c *Config) sample(server string, r reply, sent time.Time, elapsed time.Duration) (sample, error) {
	received := sent.Add(elapsed)
	s := sample{server: server, stratum: int(r.stratum), time: r.transmit,
		offset: r.receive.Sub(sent)/2 + r.transmit.Sub(received)/2,
		delay:  max(0, elapsed-r.transmit.Sub(r.receive))}
	s.distance = (s.delay+r.rootDelay)/2 + r.dispersion
	switch {
	case s.time.Before(c.Earliest):
		return sample{}, fmt.Errorf("%w: it says %s, and this image was made on %s", errImplausible, s.time.Format(time.DateTime), c.Earliest.UTC().Format(time.DateTime))
	case r.transmit.Before(r.receive):
		return sample{}, fmt.Errorf("%w: it sent the answer before it had the question", errImplausible)
	case s.distance > maxDistance:
		return sample{}, fmt.Errorf("its time may be wrong by %v, more than %v", s.distance.Round(time.Millisecond), maxDistance)
	}
	return s, nil
}
