package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	log "k8s.io/klog/v2"
)

// How often the directory is looked at: etcd would push a change at once.
const lookAgain = 50 * time.Millisecond

// leaseFiles is flannel's subnet.Manager over a directory: one file a lease, its name and content those of etcd.
type leaseFiles struct{ directory string }

func (s *leaseFiles) Name() string { return "lease files in " + s.directory }

func (s *leaseFiles) GetNetworkConfig(context.Context) (*subnet.Config, error) {
	text, err := os.ReadFile(filepath.Join(s.directory, "config"))
	if err != nil {
		return nil, err
	}
	config, err := subnet.ParseConfig(string(text))
	if err != nil {
		return nil, err
	}
	return config, subnet.CheckNetworkConfig(config)
}

func (s *leaseFiles) HandleSubnetFile(path string, config *subnet.Config, masq bool, v4 ip.IP4Net, v6 ip.IP6Net, mtu int) error {
	return subnet.WriteSubnetFile(path, config, masq, v4, v6, mtu)
}

// AcquireLease publishes the attributes for the subnet that the node has had, or else for the first free one.
func (s *leaseFiles) AcquireLease(ctx context.Context, attrs *lease.LeaseAttrs) (*lease.Lease, error) {
	config, err := s.GetNetworkConfig(ctx)
	if err != nil {
		return nil, err
	}
	subnets := filepath.Join(s.directory, "subnets")
	if err := os.MkdirAll(subnets, 0o755); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(s.directory, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, err
	}
	var others []lease.Lease
	for _, event := range s.changes(map[string][]byte{}) {
		others = append(others, event.Lease)
	}
	v4, v6, err := choose(config, others, attrs.PublicIP)
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(attrs)
	if err != nil {
		return nil, err
	}
	aside := filepath.Join(subnets, ".flannel-peer")
	if err := os.WriteFile(aside, value, 0o644); err != nil {
		return nil, err
	}
	if err := os.Rename(aside, filepath.Join(subnets, subnet.MakeSubnetKey(v4, v6))); err != nil {
		return nil, err
	}
	return leaseOf(v4, v6, *attrs), nil
}

func choose(config *subnet.Config, taken []lease.Lease, public ip.IP4) (ip.IP4Net, ip.IP6Net, error) {
	v4 := ip.IP4Net{IP: config.SubnetMin, PrefixLen: config.SubnetLen}
	v6 := ip.IP6Net{IP: config.IPv6SubnetMin, PrefixLen: config.IPv6SubnetLen}
	for _, old := range taken {
		if old.Attrs.PublicIP == public {
			return old.Subnet, old.IPv6Subnet, nil
		}
	}
	overlaps := func(old lease.Lease) bool {
		both6 := config.EnableIPv6 && !old.IPv6Subnet.Empty()
		return v4.Overlaps(old.Subnet) || both6 && v6.Overlaps(old.IPv6Subnet)
	}
	for slices.ContainsFunc(taken, overlaps) {
		v4 = v4.Next()
		if config.EnableIPv6 {
			v6 = v6.Next()
		}
	}
	if v4.IP > config.SubnetMax {
		return v4, v6, errors.New("out of subnets")
	}
	if !config.EnableIPv6 {
		v6 = ip.IP6Net{}
	}
	return v4, v6, nil
}

func leaseOf(v4 ip.IP4Net, v6 ip.IP6Net, attrs lease.LeaseAttrs) *lease.Lease {
	return &lease.Lease{EnableIPv4: true, EnableIPv6: !v6.Empty(), Subnet: v4, IPv6Subnet: v6, Attrs: attrs}
}

// WatchLeases tells every lease as it appears, changes or goes, as a watch of etcd does.
func (s *leaseFiles) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	defer close(receiver)
	known := map[string][]byte{}
	for ticker := time.NewTicker(lookAgain); ; {
		if events := s.changes(known); len(events) > 0 {
			select {
			case receiver <- []lease.LeaseWatchResult{{Events: events}}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			ticker.Stop()
			return ctx.Err()
		}
	}
}

// changes compares the directory with what is known, and remembers it.
func (s *leaseFiles) changes(known map[string][]byte) []lease.Event {
	entries, err := os.ReadDir(filepath.Join(s.directory, "subnets"))
	if err != nil {
		log.Errorf("lease files: %v", err)
		return nil
	}
	var events []lease.Event
	present := map[string]bool{}
	for _, entry := range entries {
		key := entry.Name()
		value, err := os.ReadFile(filepath.Join(s.directory, "subnets", key))
		if strings.HasPrefix(key, ".") || err != nil {
			continue
		}
		present[key] = true
		if old, ok := known[key]; ok && bytes.Equal(old, value) {
			continue
		}
		known[key] = value
		if changed, err := parse(key, value); err != nil {
			log.Errorf("lease %s: %v", key, err)
		} else if changed != nil {
			events = append(events, lease.Event{Type: lease.EventAdded, Lease: *changed})
		}
	}
	for key, value := range known {
		if present[key] {
			continue
		}
		delete(known, key)
		if gone, err := parse(key, value); err == nil && gone != nil {
			events = append(events, lease.Event{Type: lease.EventRemoved, Lease: *gone})
		}
	}
	return events
}

func parse(key string, value []byte) (*lease.Lease, error) {
	v4, v6 := subnet.ParseSubnetKey(key)
	if v4 == nil {
		return nil, nil
	}
	if v6 == nil {
		v6 = &ip.IP6Net{}
	}
	var attrs lease.LeaseAttrs
	if err := json.Unmarshal(value, &attrs); err != nil {
		return nil, err
	}
	return leaseOf(*v4, *v6, attrs), nil
}

// The rest of subnet.Manager is not asked of a node whose lease nobody takes away.

func (s *leaseFiles) RenewLease(context.Context, *lease.Lease) error { return nil }

func (s *leaseFiles) CompleteLease(context.Context, *lease.Lease, *sync.WaitGroup) error { return nil }

func (s *leaseFiles) WatchLease(ctx context.Context, _ ip.IP4Net, _ ip.IP6Net, _ chan []lease.LeaseWatchResult) error {
	<-ctx.Done()
	return ctx.Err()
}

func (s *leaseFiles) GetStoredMacAddresses(context.Context) (string, string) { return "", "" }

func (s *leaseFiles) GetStoredPublicIP(context.Context) (string, string) { return "", "" }
