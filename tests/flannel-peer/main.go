// Flannel-peer is one node of real flannel: its own backend code, with leases from a directory.
//
// Flannel's interface choice, backends, lease watcher and writer of subnet.env are used as its main program uses them,
// and its store where the leases are in etcd. Of other nodes of the tests they are in a directory, and that store is this
// program's: what is in the files is what etcd would hold, read and written by flannel's types.
package main

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/udp"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/etcd"
	log "k8s.io/klog/v2"
)

func main() {
	log.InitFlags(nil)
	// flanneld's names, so that either program can be a node of a test.
	directory := flag.String("file-subnet-mgr", "", "directory with the leases")
	endpoints := flag.String("etcd-endpoints", "", "etcd with the leases, in the place of a directory")
	prefix := flag.String("etcd-prefix", "/coreos.com/network", "where in etcd")
	subnetFile := flag.String("subnet-file", "", "where to write subnet.env")
	device := flag.String("iface", "eth0", "underlay interface")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var store subnet.Manager = &leaseFiles{directory: *directory}
	if *endpoints != "" {
		config := &etcd.EtcdConfig{Endpoints: strings.Split(*endpoints, ","), Prefix: *prefix}
		var err error
		// The node's address is enough for it to get its subnet again.
		if store, err = etcd.NewLocalManager(ctx, config, ip.IP4Net{}, ip.IP6Net{}, 60); err != nil {
			log.Exitf("%v", err)
		}
	}
	if err := run(ctx, store, *device, *subnetFile); err != nil {
		log.Exitf("%v", err)
	}
}

// run does what flannel's main does, in its order, without rules for packet filters.
func run(ctx context.Context, store subnet.Manager, device, subnetFile string) error {
	config, err := store.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	families, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return err
	}
	underlay, err := ipmatch.LookupExtIface(device, "", "", families, ipmatch.PublicIPOpts{})
	if err != nil {
		return err
	}
	chosen, err := backend.NewManager(ctx, store, underlay).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	var background sync.WaitGroup
	network, err := chosen.RegisterNetwork(ctx, &background, config)
	if err != nil {
		return err
	}
	lease := network.Lease()
	if err := store.HandleSubnetFile(subnetFile, config, false, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return err
	}
	log.Info("flannel is ready")
	network.Run(ctx)
	background.Wait()
	return nil
}
